"""Finding a pose: starting poses, screening, descent, choice, certainty. Pure torch."""
