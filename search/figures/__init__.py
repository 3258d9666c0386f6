"""Charts, pictures, heat maps, and the HTML page of the report."""
