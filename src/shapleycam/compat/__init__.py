"""Adapters to other packages, each imported only when it is used."""
