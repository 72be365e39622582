from django.db import migrations, models


def fill(apps, schema_editor):
    product = apps.get_model("catalogue", "Product")
    review = apps.get_model("catalogue", "Review")
    made = product.objects.bulk_create([product(name=f"product {number}") for number in range(30)])
    review.objects.bulk_create([review(product=one, text="good") for one in made for _ in range(3)])


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Product",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
            ],
        ),
        migrations.CreateModel(
            "Review",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("text", models.TextField()),
                ("product", models.ForeignKey("catalogue.Product", on_delete=models.CASCADE)),
            ],
        ),
        migrations.RunPython(fill),
    ]
