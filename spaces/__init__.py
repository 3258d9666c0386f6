"""What can be decided: one file per space. Import as `search.spaces`."""

if __name__ != "search.spaces":
    # Two import names would make two copies of every class.
    raise ImportError(f"import 'search.spaces', not {__name__!r}")
