"""Rows that calibration tables propose."""
