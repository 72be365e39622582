"""Django with its ORM: one cause, by LAB_CAUSE."""

import os
import random
from urllib.parse import urlsplit

import django
from django.conf import settings

REMEDIED = bool(os.environ.get("LAB_REMEDIED"))
N = int(os.environ.get("LAB_N", "0"))

database = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    ROOT_URLCONF="django_app",
    SECRET_KEY="lab",
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=[],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database.path.strip("/"),
            "USER": database.username,
            "PASSWORD": database.password,
            "HOST": database.hostname,
            "PORT": database.port,
            "CONN_MAX_AGE": 60,
        }
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import models  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402


class Author(models.Model):
    """An author of books."""

    name = models.TextField()

    class Meta:
        """Made by the lab's ``load``."""

        app_label = "lab"
        db_table = "authors"
        managed = False


class Book(models.Model):
    """A book of an author."""

    title = models.TextField()
    shelf = models.IntegerField()
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")

    class Meta:
        """Made by the lab's ``load``."""

        app_label = "lab"
        db_table = "books"
        managed = False


def n_plus_one(request: HttpRequest) -> JsonResponse:
    """Load the authors of some books."""
    first = random.randint(1, 10_000)
    books = Book.objects.filter(id__range=(first, first + N))
    if REMEDIED:
        books = books.select_related("author")
    return JsonResponse({book.title: book.author.name for book in books})  # CAUSE django_n_plus_one


def ready(request: HttpRequest) -> JsonResponse:
    """Answer."""
    return JsonResponse({})


urlpatterns = [path("health/ready", ready), path("django_n_plus_one", n_plus_one)]
app = get_wsgi_application()
