"""Learning from demonstrations and preferences: conversations, rewards, and the objectives that follow them."""
