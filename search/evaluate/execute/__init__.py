"""Run schedules on the model, sharing what they begin with alike."""
