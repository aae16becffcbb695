"""One file a paper or question: its tables and figures as studies."""

from experiments.papers import (
    accent,
    apt,
    apt_figs,
    clean,
    defense_grid,
    detectability,
    estimators,
    hcars,
    ncf,
    peers,
    poisonrec,
    rapu,
    rapu_sweeps,
    revadv,
    revadv_gowalla,
)
from experiments.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for paper in (
        clean,
        ncf,
        peers,
        revadv,
        revadv_gowalla,
        rapu,
        rapu_sweeps,
        poisonrec,
        detectability,
        defense_grid,
        estimators,
        apt,
        apt_figs,
        accent,
        hcars,
    )
    for study in paper.STUDIES
}
"""Every study, by name."""
