"""Simulates training steps on machines that are not at hand: discrete events over servers, retriever and learner."""
