"""Measures what the training steps of trainers cost."""
