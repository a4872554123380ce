"""The configuration: dataclass schema and its composition. The only room that knows Hydra."""
