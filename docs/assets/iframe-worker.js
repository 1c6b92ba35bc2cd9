/* The search runs in a worker, which browsers do not start for pages opened from a folder. There an
   iframe of the same page does the work: it gets the worker's script, and passes messages on. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      frame.addEventListener("load", () => {
        this.inside = frame.contentWindow;
        this.inside.postMessage = (data) => this.told(this, data);
        this.inside.importScripts = (...urls) =>
          Promise.all(urls.map((url) => this.run(new URL(url, script).href)));
        this.run(script).then(() => {
          for (const data of this.waiting) this.told(this.inside, data);
          this.waiting = undefined;
        });
      });
      document.documentElement.append(frame);
    }

    run(url) {
      return new Promise((done) => {
        const element = this.inside.document.createElement("script");
        element.src = url;
        element.onload = done;
        this.inside.document.body.append(element);
      });
    }

    told(target, data) {
      target.dispatchEvent(new MessageEvent("message", { data }));
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.told(this.inside, data);
    }

    terminate() {}
  };
}
