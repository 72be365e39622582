from catalogue import views
from django.urls import path

urlpatterns = [
    path("api/products/", views.products),
    path("api/products/<int:number>/", views.Product.as_view()),
]
