"""Objectives: what they measure."""
