"""Flask with a login form, a session and templates."""

from flask import Flask, redirect, render_template, request, session, url_for

app = Flask(__name__)
app.secret_key = "only for this example"


@app.get("/")
def index():
    if "user" not in session:
        return redirect(url_for("login"))
    return render_template("index.html", user=session["user"], orders=range(5))


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "POST":
        session["user"] = request.form["user"]
        return redirect(url_for("index"))
    return render_template("login.html")


@app.get("/orders/<int:number>")
def order(number):
    return {"order": number}
