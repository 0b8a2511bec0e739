"""AlpacaEval 2: preferences over a baseline, their win rate, and the win rate with length controlled."""
