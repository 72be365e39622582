"""The instrument: how much can the service take, and what stops it?"""
