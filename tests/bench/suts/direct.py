"""No mesh: plain veth and routing. No netfilter table, hence no connection tracking."""


class Sut:
    def __init__(self, _variant=""):
        pass

    def up(self, _network, _scope):
        pass

    def down(self):
        pass

    def pids(self):
        return {}

    def info(self):
        return {}

    def encrypts(self, _scope):
        return False
