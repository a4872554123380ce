"""MLflow and provenance. The only room that knows MLflow."""
