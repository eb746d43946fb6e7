"""The only cutting and differentiating of networks; models and their weights; reading pictures."""
