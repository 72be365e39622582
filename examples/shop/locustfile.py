"""Customers of the shop: of six tasks three list products, two show one, and one places an order."""

import random
from itertools import count

from locust import FastHttpUser, between, task

PASSWORD = "correct horse battery staple"  # noqa: S105 - of every demo user
CUSTOMERS = 1000  # users 1 to 1000, with at least twenty orders each
PRODUCTS = 10_000

numbers = count()


class Shopper(FastHttpUser):
    wait_time = between(1, 3)

    def on_start(self):
        number = next(numbers)
        self.random = random.Random(number)
        # 389 and 1000 have no common divisor: a thousand shoppers are a thousand customers.
        customer = number * 389 % CUSTOMERS + 1
        credentials = {"email": f"user{customer}@shop.example", "password": PASSWORD}
        token = self.client.post("/login", json=credentials).json()["token"]
        self.signed_in = {"Authorization": f"Bearer {token}"}

    def popular_product(self):
        """Return product k with a probability proportional to 1 / k, as in the sales."""
        return int((PRODUCTS + 1) ** self.random.random())

    @task(3)
    def products(self):
        page = int(50 ** self.random.random())
        self.client.get(f"/api/products?page={page}", name="/api/products")

    @task(2)
    def product(self):
        self.client.get(f"/api/products/{self.popular_product()}", name="/api/products/{id}")

    @task(1)
    def order(self):
        chosen = [self.popular_product() for _ in range(self.random.randint(2, 4))]
        items = [{"product_id": product, "quantity": 1} for product in chosen]
        self.client.post("/api/orders", json={"items": items}, headers=self.signed_in)
        self.client.get("/api/orders", headers=self.signed_in)
