"""Swing: item neighbours from the pairs of users who share them, and users like a user."""

from ray_app.config import SwingConfig
from ray_app.swing.standalone import item_neighbours, parameters, user_neighbours

__all__ = ["SwingConfig", "item_neighbours", "parameters", "user_neighbours"]
