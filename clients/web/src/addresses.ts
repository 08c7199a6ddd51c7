/**
 * The addresses of a service that has several, in the order in which this client tries them.
 *
 * Place: `client.ts` asks for one when it connects; `supervisor.ts` says when
 * it is the next one's turn. Limits: pure; what a name stands for is left to
 * the browser.
 */
export class Addresses {
  private readonly order: readonly string[];
  private at = 0;

  /** `random` gives numbers in [0, 1). The order is random, so that the clients of one node spread over all others. */
  constructor(urls: string | readonly string[], random: () => number) {
    const order = typeof urls === "string" ? [urls] : [...urls];
    if (order.length === 0) throw new Error("url has no address");
    for (let last = order.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [order[last], order[other]] = [order[other]!, order[last]!];
    }
    this.order = order;
  }

  /** Where to connect; with `elsewhere` the next address, from the last one back to the first. */
  take(elsewhere: boolean): string {
    if (elsewhere) this.at = (this.at + 1) % this.order.length;
    return this.order[this.at]!;
  }
}
