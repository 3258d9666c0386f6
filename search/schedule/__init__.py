"""The artifact: all that production needs to apply a schedule. Imports torch, diffusers and pydantic only."""

from search.schedule.errors import ScheduleError
from search.schedule.schedule import Schedule

__all__ = ["Schedule", "ScheduleError"]
