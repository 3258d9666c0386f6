"""What people look at: charts, pictures, heat-maps, and the report's page."""
