from locust import FastHttpUser, task


class Visitor(FastHttpUser):
    @task
    def visit(self) -> None:
        self.client.get("/fast")
