"""One file a paper or question: its tables and figures as studies."""

from experiments.papers import (
    accent,
    apt_figs,
    apt_tables,
    clean,
    defense_page,
    detectability,
    detectors,
    estimators,
    hcars_fig2,
    hcars_table1,
    ncf,
    peers,
    poisonrec,
    poisonrec_updates,
    rapu_sweeps,
    rapu_table2,
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
        rapu_table2,
        rapu_sweeps,
        poisonrec,
        poisonrec_updates,
        detectability,
        detectors,
        defense_page,
        estimators,
        apt_tables,
        apt_figs,
        accent,
        hcars_table1,
        hcars_fig2,
    )
    for study in paper.STUDIES
}
"""Every study, by name."""
