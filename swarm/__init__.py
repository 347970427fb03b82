"""The engine: manifest, ledger, routing, stage host, trainer, all-reduce, directory and transport."""
