"""From the command line and YAML files to checked settings and loaded models."""
