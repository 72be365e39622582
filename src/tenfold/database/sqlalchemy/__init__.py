"""Everything that SQLAlchemy does for the router: engines, connections that were checked, sessions."""
