"""The dashboard: what a coordinator shows at its HTTP port."""
