"""The one error that a schedule raises."""


class ScheduleError(ValueError):
    """A schedule that cannot be read, or cannot be applied here; the text names field, value and remedy."""
