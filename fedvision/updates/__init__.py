"""What is done to a client's update before it travels: clipping, compression, the schema of what is sent."""
