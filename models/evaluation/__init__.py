"""How a recommender is judged: lists for users (ranking), exposure of targets, statistics over repetitions.

from models.evaluation import evaluate

result = evaluate(fitted.scores, train, test=test, targets=[3, 14], k=50)
result.recall, result.hr_any
"""

from models.evaluation.blocks import Block, Scores, mask_seen, over_users
from models.evaluation.candidates import Candidates, RecNum, draw_candidates, recnum
from models.evaluation.exposure import (
    Improvement,
    TargetRanks,
    average_rank,
    hr_any,
    hr_mean,
    hr_sum,
    in_list,
    prediction_shift,
    rank_shift,
    robustness_improvement,
    target_ranks,
)
from models.evaluation.protocol import Evaluation, PerUser, evaluate
from models.evaluation.ranking import hr_test, ndcg, precision, recall, relevance
from models.evaluation.statistics import (
    Interval,
    PairedTest,
    Summary,
    bootstrap,
    holm,
    paired_bootstrap,
    paired_t,
    summarize,
)
from models.evaluation.stealth import mean_jaccard, neighbor_purity, plane, popularity_distance

__all__ = [
    "evaluate",
    "Evaluation",
    "PerUser",
    "over_users",
    "mask_seen",
    "Block",
    "Scores",
    "recall",
    "ndcg",
    "hr_test",
    "precision",
    "relevance",
    "hr_any",
    "hr_mean",
    "hr_sum",
    "in_list",
    "recnum",
    "RecNum",
    "draw_candidates",
    "Candidates",
    "average_rank",
    "rank_shift",
    "prediction_shift",
    "robustness_improvement",
    "Improvement",
    "target_ranks",
    "TargetRanks",
    "summarize",
    "Summary",
    "bootstrap",
    "paired_bootstrap",
    "Interval",
    "paired_t",
    "PairedTest",
    "holm",
    "popularity_distance",
    "mean_jaccard",
    "neighbor_purity",
    "plane",
]
