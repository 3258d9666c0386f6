"""Descriptions of a model for spaces: its nodes and steps, its costs, and the tables that calibration measures."""
