"""All rows, in the order of the page."""

from . import data, medical, models, points, recipes, sounds
from .table import MISTAKES

ORDER = (recipes, data, sounds, medical, points, models)
MISTAKES.sort(key=lambda row: [module.SUBJECT for module in ORDER].index(row.subject))

__all__ = ["MISTAKES"]
