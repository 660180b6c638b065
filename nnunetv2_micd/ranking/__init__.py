"""Orders unlabeled images by what a trained model is unsure of, so that labels go where they help."""

from nnunetv2_micd.ranking.rank import Ranking, rank_unlabeled

__all__ = ["Ranking", "rank_unlabeled"]
