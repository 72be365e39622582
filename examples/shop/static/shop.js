const list = document.querySelector("#products");
const answer = await fetch("/api/products");
for (const product of (await answer.json()).products) {
  const name = document.createElement("strong");
  name.textContent = product.name;
  const price = (product.price_cents / 100).toFixed(2);
  const entry = document.createElement("li");
  entry.append(name, `€ ${price} · ${product.category}`);
  list.append(entry);
}
