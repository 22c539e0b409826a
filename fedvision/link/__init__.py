"""What a SuperLink and its clients say to each other: how it travels, is checked, and is kept on the way."""
