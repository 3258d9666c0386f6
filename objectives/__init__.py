"""What is measured: one file per objective. Import as `search.objectives`."""

if __name__ != "search.objectives":
    # Two import names would make two copies of every class.
    raise ImportError(f"import 'search.objectives', not {__name__!r}")
