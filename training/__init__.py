"""Data, losses, one readable loop per model, evaluation."""
