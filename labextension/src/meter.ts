// The meter: a link to the pool's page with figures in it, for the status bar or the top of the page.

import { Widget } from '@lumino/widgets';

import type { IMeter } from './words';

export class Meter extends Widget {
  constructor(address: string) {
    const link = document.createElement('a');
    link.href = address;
    link.target = '_blank';
    link.rel = 'noopener';
    super({ node: link });
    this.addClass('jp-GPUPool-Meter');
    this._utilization = bar();
    this._memory = bar();
    this._text = document.createElement('span');
    this._text.className = 'jp-GPUPool-Text';
    link.append(this._utilization, this._memory, this._text);
    this.hide();
  }

  display(found: IMeter | null): void {
    this.setHidden(found === null);
    if (found === null) {
      return;
    }
    fill(this._utilization, found.utilization);
    fill(this._memory, found.memory);
    if (this._text.textContent !== found.text) {
      this._text.textContent = found.text;
    }
    if (this.node.title !== found.label) {
      this.node.title = found.label;
      this.node.setAttribute('aria-label', found.label);
    }
    this.node.dataset.mood = found.mood;
  }

  private readonly _utilization: HTMLElement;
  private readonly _memory: HTMLElement;
  private readonly _text: HTMLElement;
}

// The bars only repeat what the words say.
function bar(): HTMLElement {
  const outer = document.createElement('span');
  outer.className = 'jp-GPUPool-Bar';
  outer.setAttribute('aria-hidden', 'true');
  outer.append(document.createElement('span'));
  return outer;
}

function fill(outer: HTMLElement, value: number | null): void {
  outer.hidden = value === null;
  (outer.firstElementChild as HTMLElement).style.height = `${Math.round((value ?? 0) * 100)}%`;
}
