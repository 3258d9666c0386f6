"""Options, and the YAML that ships."""
