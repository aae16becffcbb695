"""One file a paper or question: its tables and figures as studies."""

from experiments.papers import clean, estimators, ncf, peers, revadv
from experiments.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (*clean.STUDIES, *ncf.STUDIES, *peers.STUDIES, *revadv.STUDIES, *estimators.STUDIES)
}
"""Every study, by name."""
