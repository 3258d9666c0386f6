"""Fit solvers and corrections to the teacher while a schedule runs."""
