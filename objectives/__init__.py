"""Objectives, one per file: what a search measures and trades off. Import as `search.objectives`."""

if __name__ != "search.objectives":
    # Imported under two names, every class would exist twice.
    raise ImportError(f"import 'search.objectives', not {__name__!r}")
