"""One trial: policy + steps -> values. Knows neither Ray nor Optuna."""
