"""How weights get from the trainer's GPU to the policy's: the part on which both ends must agree."""
