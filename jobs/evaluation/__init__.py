"""Evaluation and ablation of rendered clips."""
