"""One file a paper or question: its tables and figures as studies."""

from experiments.papers import (
    apt,
    apt_figs,
    clean,
    defense_grid,
    detectability,
    estimators,
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
    )
    for study in paper.STUDIES
}
"""Every study, by name."""
