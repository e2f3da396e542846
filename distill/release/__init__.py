"""Result tables and model cards."""
