class Generation:
    pass
