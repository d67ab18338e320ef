def write(records, folder):
    pass
